"""Verdicts on approximate methods: does a method pay, and is its answer better than a trivial one?"""
