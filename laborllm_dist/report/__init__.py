"""From score tables to a page one can cite: perplexities with intervals, paired comparisons, groups, figures."""
