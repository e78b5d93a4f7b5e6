"""Everything that speaks gRPC: the service, its gate, and protobuf to core and back."""
