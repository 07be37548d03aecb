"""AWS services other than DynamoDB, and outbound HTTP: one thin module each."""
