"""Speed: each operation against its textbook form and the device's peaks, training throughput, start-up."""
