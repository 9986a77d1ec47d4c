"""What a model is measured by, while it trains."""
