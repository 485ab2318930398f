"""What KEDA asks of scalers outside of it."""
