"""One file per mechanism of domain adaptation.

Importing the package is free of torch; `settings` describes every component, `build` makes them.
"""
