"""Pure numerics: intervals, estimators, tests.  numpy and scipy."""
