"""The side that trains: its frames stay here."""
