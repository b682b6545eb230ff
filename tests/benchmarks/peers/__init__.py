"""What a competent person would write in place of heatpipe; each a program: ``python -m … URL FOLDER COIN SECONDS``."""
