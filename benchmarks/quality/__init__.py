"""The paper's claims, tested: MatTA beside every other way to train the same Students, over paired
seeds.
"""
