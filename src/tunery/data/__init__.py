"""From files to tokens: reading rows, rendering chats, what is learned, checks, splits."""
