"""The gRPC side: service, access checks, and conversion between protobuf and core."""
