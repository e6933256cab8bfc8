"""What people look at: plots, reports of runs and studies, the table of a network's parts."""
