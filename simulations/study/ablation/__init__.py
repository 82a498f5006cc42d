"""`consilium-sim ablate`: what each part of the method is worth."""
