"""POST /v1/responses: OpenAI's newer way to ask, built on the way of chats."""
