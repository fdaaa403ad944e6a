"""The operator: the LLMDeployment API, its reconciliation, and the same on one machine without a cluster."""
