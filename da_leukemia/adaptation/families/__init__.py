"""The settings of each component, by family; `adaptation.settings` has all of them."""
