"""HTTP in, HTTP out; one file per audience. No image or tensor work."""
