"""Which commit, or which release of a package, made a loss slower, heavier or wrong?"""
