"""One file per mechanism of domain adaptation."""
