"""Who a device is: the certificate authority, invitations, claims, renewals, and what makes a clone noticed."""
