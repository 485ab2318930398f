"""Worker pools against a real Kubernetes API server, with a stand-in for the kubelets."""
