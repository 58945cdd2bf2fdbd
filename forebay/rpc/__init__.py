"""The one gRPC shell: server, client, interceptor, channel arguments."""
