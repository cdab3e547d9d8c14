"""Test an export on a real device: write a kit for a person who has one, and judge the results that come back."""
