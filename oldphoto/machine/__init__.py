"""The computer: memory, threads and the workers that photos are restored in."""
