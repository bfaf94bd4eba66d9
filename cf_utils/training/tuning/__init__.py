"""The tuning rule: choose each method's settings on validation renders, alike for all methods.

`grids` lists the settings that are tried, `tuner` measures one, `record` holds the rule and the
result, `session` runs it from the command line.
"""
