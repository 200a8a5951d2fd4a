"""What firmware and boot loaders measured: TCG event logs, their replay to PCR values, and what replayed events say."""
