"""The authors' own code, in checkouts that the user made."""
