"""Generation engines behind one interface: torch, and ONNX Runtime."""
