"""All that knows gRPC and HTTP."""
