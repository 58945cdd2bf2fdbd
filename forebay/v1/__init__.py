"""Generated protobuf and gRPC stubs; never edited by hand (`forebay protos`)."""
