"""What everything else stands on: errors, files, locks, devices, processes, progress. It knows nothing of the rest."""
