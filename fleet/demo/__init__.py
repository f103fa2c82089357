"""The demo: a campaign over emulated microcontrollers, and the result folder it leaves."""
