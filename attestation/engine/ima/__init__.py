"""What the running Linux kernel measured (IMA): its measurement list, the replay to PCR 10, approved files."""
