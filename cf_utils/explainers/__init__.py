"""One file a method, written to be read. Every method is a frozen dataclass with the call of `cf_utils.core.Explainer`."""
