"""Kernels: one typed torch function per MIL op, grouped by the chapters of the op set.

A kernel's parameters are the op's; a default is the op set's default. How arguments reach them:
:mod:`md_export.mil.bind`. Which op runs which kernel: :mod:`md_export.mil.table`.
"""
