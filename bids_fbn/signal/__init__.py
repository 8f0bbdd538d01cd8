"""From a BOLD run to cleaned, z-scored time series on one analysis grid."""
