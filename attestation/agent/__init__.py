"""What runs on a host: bartizan_agent.py stands alone there, with its unit and its settings."""
