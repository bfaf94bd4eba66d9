"""The tuning rule: a method's settings for renders are chosen on validation queries by one rule, the same for all rivals.

grids: what is tried, 24 settings a method. tuner: how one is measured. record: the rule, and the file that holds what came of it.
"""
