"""The model: its shape, decoder, router, initial weights, one-pass oracle, and what each costs."""
