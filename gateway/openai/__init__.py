"""The OpenAI dialect: HTTP with JSON and server-sent events, before the same intake and engine as gRPC."""
