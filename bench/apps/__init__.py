"""The app and the service of each workload: processes of their own, so that their CPU time is their own too."""
