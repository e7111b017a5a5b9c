"""The web service: bundles that answer over HTTP, on ONNX Runtime alone."""
