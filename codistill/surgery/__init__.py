"""Surgery: pure functions from a model to one that offers more taps. What it adds is trained beside the model and
stripped by the method's export."""
