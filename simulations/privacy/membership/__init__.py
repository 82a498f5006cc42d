"""The membership game: may anything that leaves a site tell whether one patient is there?

Two sites that differ in one patient, a malicious coordinator, and what its guesses prove. The
audit of a site plays it, and so does the hostile suite of the tests.

Never here: a patient's data; a leak that only a test makes.
"""
