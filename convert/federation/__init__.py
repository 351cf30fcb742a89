"""Several sites train one model by federated averaging; their photographs stay where they are."""
