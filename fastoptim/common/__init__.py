"""What everything else stands on: argument checks, trees, threads, signals, generators."""
