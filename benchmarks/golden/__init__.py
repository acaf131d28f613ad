"""Cases on which the methods must decide as the authors' released code does."""
