"""What one writes by hand: every row through the official SDK, 64 at a time.

Arguments: base URL, CSV file, number of rows, output file. Prints the seconds from the first
call to the last answer, so that starting Python and loading the SDK does not count.
"""

import asyncio
import csv
import json
import sys
import time

from openai import AsyncOpenAI


async def main(url, path, count, output):
    client = AsyncOpenAI(base_url=url, api_key="none")
    room = asyncio.Semaphore(64)
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(count))]

    async def ask(row, out):
        prompt = (
            f"Write a two-sentence introduction to {row['name']}, {row['region']}, {row['country']}."
        )
        async with room:
            answer = await client.chat.completions.create(
                model="bench", messages=[{"role": "user", "content": prompt}], max_tokens=20
            )
        line = {"custom_id": row["id"], "text": answer.choices[0].message.content}
        out.write(json.dumps(line) + "\n")

    with open(output, "w", encoding="utf-8") as out:
        began = time.monotonic()
        await asyncio.gather(*(ask(row, out) for row in rows))
        print(time.monotonic() - began)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
