"""Models of the recipes. Each file needs torch alone: its text is what a model export loads the model with."""
