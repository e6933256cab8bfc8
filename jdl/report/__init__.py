"""Plots, reports of runs and studies, tables of results, and summaries of networks."""
