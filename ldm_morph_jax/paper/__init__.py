"""The paper's tables and figures: plan, run, statistics, tables, pages."""
