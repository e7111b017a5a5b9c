"""Networks. A family is one file; `registry` knows them all."""
