"""Who sends a call and what he may do: bearer tokens, client certificates, or nobody in particular."""
